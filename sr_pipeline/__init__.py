"""Super-resolution training and inference as graphs of typed nodes.

Nothing is imported here, so that ``--help`` is fast. The names that most programs need::

    from sr_pipeline.graph import Graph
    from sr_pipeline.node import node
    from sr_pipeline.run import run
"""

__version__ = "0.1.0"

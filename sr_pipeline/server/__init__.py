"""The graph editor's server: ComfyUI's protocol over the engine. Needs the extra ``server``."""

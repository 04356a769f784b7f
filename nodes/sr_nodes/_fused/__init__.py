"""What ``fused`` is made of. No nodes.

Maps are bfloat16 and channels_last, [B, C, H, W] in torch's words and rows of channels in memory.
"""

"""The super-resolution pack: every part of SRGAN (Ledig et al., CVPR 2017) as a node."""

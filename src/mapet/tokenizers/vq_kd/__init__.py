"""VQ-KD (Peng et al. 2022, BEiT v2): tokens that a network learns from a teacher."""

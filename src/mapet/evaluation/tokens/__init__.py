"""Visual tokens as the only input of a classifier (MaPeT, Table 7)."""

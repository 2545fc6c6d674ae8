"""Con-CDVAE's two graph networks as the authors compute them, for comparison: lists of edges and of triplets."""

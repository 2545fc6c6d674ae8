"""The networks of Con-CDVAE and CGCNN."""

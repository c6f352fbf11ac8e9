"""What may be built: genotypes, cells and the models made of them."""

"""What a candidate costs: from a genotype to a measured outcome."""

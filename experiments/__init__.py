"""What a person launches, reads and takes away."""

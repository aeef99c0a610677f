"""What the steps of a merge method do to whole leaves and to slices of them."""

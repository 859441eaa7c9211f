"""What DeepSpeed decides: order of gradients, buckets, slices, sub-groups, gathering."""

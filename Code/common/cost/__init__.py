"""What a model computes and how fast it is: MACs by closed form and by counting, the published networks, throughput."""

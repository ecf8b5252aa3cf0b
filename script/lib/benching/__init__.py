"""What the benchmarks of starts share: images, master, peers, figures and their pictures."""

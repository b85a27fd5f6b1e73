"""Analysis of networks: gradients, memory cells, gates, and the 1-LSTM as an activation function."""

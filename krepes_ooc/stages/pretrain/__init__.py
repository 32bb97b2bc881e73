"""Stage pretrain: train the demo network, source -> checkpoint."""

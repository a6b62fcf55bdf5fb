"""Training: flags, plan, optimizer groups, loss and the loop around Transformers' Trainer."""

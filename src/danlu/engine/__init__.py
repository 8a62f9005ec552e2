"""The one training loop: optimisers, schedules, checkpoints, trackers, fault handling."""

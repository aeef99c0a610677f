"""What the checkpoint manager is made of: its steps, options and policies."""

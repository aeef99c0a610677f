"""Git Re-Basin: matching the hidden units of models before they are merged."""

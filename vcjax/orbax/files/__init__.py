"""What Orbax wrote, or is to read: import and export."""

"""What the commands do: records in, records out."""

"""What a token costs on a device."""

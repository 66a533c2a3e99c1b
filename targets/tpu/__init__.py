"""What XLA compiles for: TPUs, and this machine's processor to check the same function on."""

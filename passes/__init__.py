"""Program to program; no pass knows a target."""

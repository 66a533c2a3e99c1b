"""The programs that tokc is measured beside: their environments, exports and sides."""

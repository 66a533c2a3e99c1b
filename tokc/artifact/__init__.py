"""Writing the deployable artifact."""

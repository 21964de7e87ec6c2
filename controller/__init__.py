"""The controller: the thinking in core, thin shells around it."""

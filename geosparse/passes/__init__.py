"""The passes of a profile over one window: what is captured, what is measured, what is kept."""

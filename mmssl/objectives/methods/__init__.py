"""Methods: one small file each, which composes an objective from parts."""

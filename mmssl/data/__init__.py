"""Manifests, import and export, validation, audit, folds, collate."""

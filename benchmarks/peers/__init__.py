"""The loops that ivg is measured against, each one a module of plain functions."""

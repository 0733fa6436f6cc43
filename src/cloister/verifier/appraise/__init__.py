"""Appraisal: authenticated evidence against reference values and policy."""

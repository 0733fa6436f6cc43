"""Simulated vendors and attesters, for tests of programs that use Cloister."""

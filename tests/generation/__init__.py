"""Tests of the generation app."""

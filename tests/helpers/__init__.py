"""Modules that several tests share: videos, toy networks, configurations, parity with recordings."""

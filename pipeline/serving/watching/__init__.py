"""Watching a server: golden rows between live requests, judged in windows; alarms; attestations."""

"""What an edit follows: SDS, DDS and CDS as pure functions of scores and features; no model is imported here."""

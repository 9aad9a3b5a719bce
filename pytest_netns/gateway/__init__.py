"""The helper process that owns the hub: it makes leaves, decides on egress and keeps the record."""

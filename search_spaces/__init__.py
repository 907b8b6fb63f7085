"""What may be searched: model families and builders, weights from files, data with its splits."""

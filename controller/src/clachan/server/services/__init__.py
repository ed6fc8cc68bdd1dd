"""What happens: each service is functions over a `Controller`, documents of the contract in and out. No HTTP here."""

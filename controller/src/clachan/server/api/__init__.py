"""HTTP: routes, who may call them, documents in and out. What happens is in `services`."""

"""Messages generated from ``protocols/rpc/*.proto``; see the README there for how."""

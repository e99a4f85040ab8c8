"""A client of the API: the connection (`client`), the folded state (`replica`) and the `messages`."""

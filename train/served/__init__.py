"""Recall through the server: what is asked (plan), who answers (server, client), what is said about it (report, plots)."""

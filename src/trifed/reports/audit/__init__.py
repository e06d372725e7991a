"""Reports on audits: findings as they are kept in audit.json, and the page made of them."""

"""Who may do what over HTTP: `token` is the document, `scopes` say what a token may, `permissions` what each route
needs, `credentials` finds the token in a request, `guarding` stands in front of all routes."""

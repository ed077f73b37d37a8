// Starts Swagger UI on this server's own description of itself.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#interface",
  deepLinking: true,
  // Unless told not to, it shows the description to a validator on the internet.
  validatorUrl: null,
});

// Shows the OpenAPI document of this service. Addresses are relative: the page may be below a prefix.

/* global SwaggerUIBundle */

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null, // by default, a badge of another site
});

export default {
  skipTrailingSlashRedirect: true, // else /correlator/ becomes /correlator, beside which the page finds none of its files
  rewrites: async () => [{ source: "/correlator/:path*", destination: "http://127.0.0.1:8686/:path*" }],
};

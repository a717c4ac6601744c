// An OpenID provider for tests/it/login/servers.rs: node server.mjs CLIENT_ID CLIENT_SECRET. It says where it listens.
// Any name logs in. Codes are good once, PKCE is required, refresh tokens rotate.
import { once } from 'node:events';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const [client_id, client_secret] = process.argv.slice(2);
const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [{
    client_id,
    client_secret,
    // A native client comes back to any port of this machine (RFC 8252).
    application_type: 'native',
    redirect_uris: ['http://127.0.0.1/callback'],
    grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
  }],
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true } },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, name: `Name of ${id}` }) }),
  claims: { openid: ['sub', 'name'] },
  conformIdTokenClaims: false,
  issueRefreshToken: (_, client) => client.grantTypeAllowed('refresh_token'),
  rotateRefreshToken: true,
  ttl: { AccessToken: 3600, RefreshToken: 86400 },
  cookies: { keys: ['of a test'] },
});
server.on('request', provider.callback());
console.log(`listening at ${issuer}`);

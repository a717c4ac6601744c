/** Generated from docs/schema/messages.json by generate.mjs. */

/**
 * Something that happened. The routing key is its name. No field is a secret.
 */
export type Event =
  | EventTokenReauthorizationRequired
  | EventTokenRefreshed
  | EventProviderUnavailable
  | EventProviderRecovered
  | EventProviderMisconfigured;
/**
 * Why a user must log in again.
 *
 * - `refresh_token_refused`: The provider refuses the refresh token: the user revoked the access, or it expired.
 * - `refresh_interrupted`: A refresh was interrupted after the provider had issued a new pair, and the pair was lost on its way here.
 */
export type ErrorReason = "refresh_token_refused" | "refresh_interrupted";
/**
 * Why a token was refreshed.
 *
 * - `opportunistic`: It was still valid, and nobody held it.
 * - `required`: It did not live as long as requested.
 */
export type RefreshCause = "opportunistic" | "required";
/**
 * The answer to `token.request`, and to each host of `workspace.start`.
 */
export type TokenReply = TokenReplyOk | TokenReplyError;
/**
 * A token that is handed out, in clear or sealed.
 */
export type GrantedToken = GrantedTokenClear | GrantedTokenSealed;
/**
 * What a request did to the token.
 *
 * - `none`: Still valid.
 * - `reserved`: Still valid; an opportunistic refresh was due, but somebody holds the token.
 * - `opportunistic`: Refreshed although still valid, because nobody held it.
 * - `required`: Refreshed because it would not have lived as long as requested.
 */
export type Refresh = "none" | "reserved" | "opportunistic" | "required";
/**
 * What a requester should know about a token that was handed out, or about its message.
 */
export type Warning = KnownWarning | UnknownFieldWarning;
/**
 * Those that have a name.
 *
 * - `lifetime_clamped`: The provider issues tokens that live shorter than requested.
 * - `lifetime_short`: The token expires before the requested lifetime is over, because refreshing it now would kill it under somebody who holds it.
 * - `refresh_failed`: An opportunistic refresh failed; this is the still valid token.
 * - `token_reported`: Somebody reported that the host rejects this token. It is refreshed as soon as nobody holds it.
 * - `reservation_shortened`: The token is reserved for longer than it lives, so `reserved_until` is `expires_at`. Only if no warning about the lifetime says so already.
 */
export type KnownWarning =
  "lifetime_clamped" | "lifetime_short" | "refresh_failed" | "token_reported" | "reservation_shortened";
/**
 * The contract does not know this field of the message: `unknown_field: token.refreshToken`.
 */
export type UnknownFieldWarning = string;
/**
 * The error codes of the contract.
 *
 * - `invalid_request`: Body or properties break the contract.
 * - `unknown_host`: No provider has this host.
 * - `user_not_found`: The user has no identity at all.
 * - `identity_not_found`: The user has no identity at this host.
 * - `token_not_found`: The identity has no token.
 * - `not_refreshable`: Too short for the request, and there is no refresh token.
 * - `reauthorization_required`: The provider refuses the refresh token: the user must log in again.
 * - `provider_misconfigured`: The provider refuses us: the operator must mend its settings.
 * - `provider_unavailable`: The provider cannot be reached or does not answer as it should.
 * - `refresh_timeout`: Another worker's refresh did not end within the wait.
 * - `deadline_exceeded`: The request was too old, or its time ran out.
 * - `forbidden`: The publisher may not have this.
 * - `internal`: Anything else.
 */
export type ErrorCode =
  | "invalid_request"
  | "unknown_host"
  | "user_not_found"
  | "identity_not_found"
  | "token_not_found"
  | "not_refreshable"
  | "reauthorization_required"
  | "provider_misconfigured"
  | "provider_unavailable"
  | "refresh_timeout"
  | "deadline_exceeded"
  | "forbidden"
  | "internal";
/**
 * The answer to `token.report`.
 */
export type TokenReportReply = TokenReportReplyOk | TokenReportReplyError;
/**
 * What came of a report.
 *
 * - `refreshed`: There is a new token: the next request gets it.
 * - `held`: Somebody holds the token. It is refreshed by the first request after that.
 * - `withdrawn`: There is no refresh token to check it with. It is not handed out any more.
 * - `not_current`: It is not the token that is handed out now.
 */
export type ReportResult = "refreshed" | "held" | "withdrawn" | "not_current";
/**
 * `token.store`: a user has authorised; tokenkeeper owns the pair from here on.
 */
export type TokenStore = TokenStoreClear | TokenStoreSealed;
/**
 * The answer to `token.store`.
 */
export type TokenStoreReply = TokenStoreReplyOk | TokenStoreReplyError;
/**
 * The answer to `workspace.start`.
 */
export type WorkspaceStartReply = WorkspaceStartReplyOk | WorkspaceStartReplyError;

/**
 * Every message of tokenkeeper by its name. No message has this form: it is for generators, which make each type once.
 */
export interface Messages {
  event?: Event;
  "token.reply"?: TokenReply;
  "token.report"?: TokenReport;
  "token.report.reply"?: TokenReportReply;
  "token.request"?: TokenRequest;
  "token.sealed"?: TokenSealed;
  "token.store"?: TokenStore;
  "token.store.reply"?: TokenStoreReply;
  "workspace.start"?: WorkspaceStart;
  "workspace.start.reply"?: WorkspaceStartReply;
}
/**
 * A user's refresh token is dead: the user must log in again. Once for each pair.
 */
export interface EventTokenReauthorizationRequired {
  event: "token.reauthorization_required";
  host: string;
  user_id: string;
  at: string;
  generation: number;
  reason: ErrorReason;
}
/**
 * A new pair is stored.
 */
export interface EventTokenRefreshed {
  event: "token.refreshed";
  host: string;
  user_id: string;
  at: string;
  generation: number;
  cause: RefreshCause;
  expires_at: string | null;
}
/**
 * A worker leaves a host alone, because it failed call after call or asked for it.
 */
export interface EventProviderUnavailable {
  event: "provider.unavailable";
  host: string;
  at: string;
  retry_after_secs: number;
  reason: string;
}
/**
 * A host that was unavailable or refused everybody works again.
 */
export interface EventProviderRecovered {
  event: "provider.recovered";
  host: string;
  at: string;
}
/**
 * A host refuses everybody's refresh token: its settings are wrong, and an operator must act. No user is asked to log in again for it.
 */
export interface EventProviderMisconfigured {
  event: "provider.misconfigured";
  host: string;
  at: string;
  since: string;
  reason: string;
}
/**
 * Here is the token.
 */
export interface TokenReplyOk {
  status: "ok";
  user_id: string;
  host: string;
  token: GrantedToken;
  refresh: Refresh;
  warnings: Warning[];
}
/**
 * A token in clear.
 */
export interface GrantedTokenClear {
  username: string;
  scopes: string[];
  updated_at: string;
  expires_at: string | null;
  reserved_until: string;
  value: string;
  userinfo: string;
}
/**
 * A token that only the requester can open.
 */
export interface GrantedTokenSealed {
  username: string;
  scopes: string[];
  updated_at: string;
  expires_at: string | null;
  reserved_until: string;
  sealed: string;
}
/**
 * There is none.
 */
export interface TokenReplyError {
  status: "error";
  error: ErrorBody;
  host?: string;
  user_id?: string;
  warnings?: Warning[];
  workspace_id?: string;
}
/**
 * What is wrong, for a program and for a person.
 */
export interface ErrorBody {
  code: ErrorCode;
  message: string;
  retryable: boolean;
  reason?: ErrorReason;
  retry_after_secs?: number;
}
/**
 * `token.report`: the host rejected a token that was handed out.
 */
export interface TokenReport {
  user_id: string;
  host: string;
  token_sha256: string;
}
/**
 * The report was taken.
 */
export interface TokenReportReplyOk {
  status: "ok";
  result: ReportResult;
  warnings?: Warning[];
}
/**
 * It was not; or the token was checked, and there is no other one.
 */
export interface TokenReportReplyError {
  status: "error";
  error: ErrorBody;
  host?: string;
  user_id?: string;
  warnings?: Warning[];
  workspace_id?: string;
}
/**
 * `token.request`: hand out a user's token for a host.
 */
export interface TokenRequest {
  user_id: string;
  host: string;
  reply_public_key?: string;
  requested_lifetime_secs?: number | null;
}
/**
 * What is sealed in a reply: the fields that are left out of `token`, and whose token it is. So a token of another user, which somebody put into this reply, is noticed.
 */
export interface TokenSealed {
  user_id: string;
  host: string;
  value: string;
  userinfo: string;
}
/**
 * A login whose pair stands in it.
 */
export interface TokenStoreClear {
  user_id: string;
  host: string;
  token: StoredPair;
  auth_id?: string | null;
  auth_name?: string | null;
  key_id?: string | null;
  sealed?: null;
}
/**
 * A pair as a login flow obtained it.
 */
export interface StoredPair {
  value: string;
  expires_at?: string | null;
  refresh_token?: string | null;
  refresh_token_expires_at?: string | null;
  scopes?: string[] | null;
  username?: string | null;
}
/**
 * A login whose pair only the worker can open.
 */
export interface TokenStoreSealed {
  user_id: string;
  host: string;
  sealed: string;
  auth_id?: null;
  auth_name?: null;
  key_id?: string | null;
}
/**
 * The pair is stored.
 */
export interface TokenStoreReplyOk {
  status: "ok";
  warnings?: Warning[];
}
/**
 * It is not.
 */
export interface TokenStoreReplyError {
  status: "error";
  error: ErrorBody;
  host?: string;
  user_id?: string;
  warnings?: Warning[];
  workspace_id?: string;
}
/**
 * `workspace.start`: hand out the tokens that a workspace needs to clone its repositories.
 */
export interface WorkspaceStart {
  workspace_id: string;
  user_id: string;
  /**
   * @minItems 1
   * @maxItems 16
   *
   * Items: A repository of a workspace start. An unreadable one costs only its own token.
   */
  repositories: string[];
  reply_public_key?: string;
  requested_lifetime_secs?: number | null;
}
/**
 * Here are all the tokens.
 */
export interface WorkspaceStartReplyOk {
  status: "ok";
  tokens: TokenReplyOk[];
  workspace_id: string;
  user_id: string;
  warnings?: Warning[];
}
/**
 * A token is missing, or the message as a whole is wrong.
 */
export interface WorkspaceStartReplyError {
  status: "error";
  tokens: TokenReply[];
  error?: ErrorBody;
  user_id?: string;
  warnings?: Warning[];
  workspace_id?: string;
}

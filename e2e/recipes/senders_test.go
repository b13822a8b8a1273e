package recipes

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/example/traefik-idem/e2e/internal/rig"
)

// sender is who sends webhooks, as it really does.
type sender struct {
	row  string // of docs/recipes.md
	path string // of the example
	body func(event string, try int) string
	// header is what it sends besides, each name as it is.
	header func(event string, try int) []string
	// sign is the signature, and the header with it; nil if the sender signs within the body, or not at all.
	sign func(h http.Header, body string) (name, value string)
}

// deliver is delivery number try of an event.
func (s *sender) deliver(event string, try int) rig.Call {
	c := rig.Call{Method: http.MethodPost, Path: s.path, Body: s.body(event, try), Header: http.Header{}}
	lines := s.header(event, try)
	for i := 0; i+1 < len(lines); i += 2 {
		c.Header.Set(lines[i], lines[i+1])
	}
	if s.sign != nil {
		c.Header.Set(s.sign(c.Header, c.Body))
	}
	return c
}

// sent is when a delivery is sent, in seconds since 1970.
func sent(try int) string {
	return strconv.FormatInt(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC).Add(time.Duration(try)*5*time.Minute).Unix(), 10)
}

const secret = "a secret that nobody else has"

func mac(h func() hash.Hash, text string) []byte {
	m := hmac.New(h, []byte(secret))
	m.Write([]byte(text))
	return m.Sum(nil)
}

func hexMAC(text string) string { return hex.EncodeToString(mac(sha256.New, text)) }

func base64MAC(text string) string { return base64.StdEncoding.EncodeToString(mac(sha256.New, text)) }

// uuid is the UUID of a name.
func uuid(name string) string {
	sum := sha256.Sum256([]byte(name))
	text := hex.EncodeToString(sum[:16])
	return text[:8] + "-" + text[8:12] + "-4" + text[13:16] + "-8" + text[17:20] + "-" + text[20:]
}

var senders = []*sender{
	{
		row:  "Stripe",
		path: "/webhooks/stripe",
		body: func(event string, try int) string {
			return fmt.Sprintf(`{
  "id": "evt_1PgafmB7WZ01zgkW%s",
  "object": "event",
  "api_version": "2025-06-30.basil",
  "created": 1772600767,
  "data": {
    "object": {
      "id": "pi_3PgafmB7WZ01zgkW0",
      "object": "payment_intent",
      "amount": 2000,
      "currency": "eur",
      "metadata": {},
      "status": "succeeded"
    }
  },
  "livemode": true,
  "pending_webhooks": %d,
  "request": {
    "id": "req_Iw3ZsHFnYJWbPN",
    "idempotency_key": "f3a1c0fb-7a0f-4c1c-8a3f-94c3f1bb2f41"
  },
  "type": "payment_intent.succeeded"
}`, event, 4-try)
		},
		header: func(_ string, try int) []string {
			return []string{
				"Content-Type", "application/json; charset=utf-8", "User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
				"Accept", "*/*; q=0.5, application/xml", "Cache-Control", "no-cache", "Stripe-Signature", "t=" + sent(try) + ",",
			}
		},
		sign: func(h http.Header, body string) (string, string) {
			at, _, _ := strings.Cut(h.Get("Stripe-Signature"), ",")
			return "Stripe-Signature", at + ",v1=" + hexMAC(strings.TrimPrefix(at, "t=")+"."+body)
		},
	},
	{
		row:  "Adyen",
		path: "/webhooks/adyen",
		body: func(event string, _ int) string {
			psp := "QFQTPCQ8HXSK" + event
			signature := base64MAC(psp + "::YOUR_MERCHANT_ACCOUNT:order-4711:1130:EUR:AUTHORISATION:true")
			return `{"live":"true","notificationItems":[{"NotificationRequestItem":{"additionalData":{"cardSummary":"1111","hmacSignature":"` + signature +
				`"},"amount":{"currency":"EUR","value":1130},"eventCode":"AUTHORISATION","eventDate":"2026-03-04T05:06:07+01:00","merchantAccountCode":"YOUR_MERCHANT_ACCOUNT",` +
				`"merchantReference":"order-4711","operations":["CANCEL","CAPTURE","REFUND"],"paymentMethod":"visa","pspReference":"` + psp + `","reason":"033899:1111:03/2030","success":"true"}}]}`
		},
		header: func(string, int) []string {
			return []string{"Content-Type", "application/json; charset=utf-8", "User-Agent", "Adyen HttpClient 1.0", "Authorization", "Basic d2ViaG9va3M6c2VjcmV0"}
		},
	},
	{
		row:  "GitHub",
		path: "/webhooks/github",
		body: func(string, int) string {
			return `{"ref":"refs/heads/main","before":"6113728f27ae82c7b1a177c8d03f9e96e0adf246","after":"59b20b8d5c6ff8d09518454d4dd8b7b30f095ab5",` +
				`"repository":{"id":186853002,"full_name":"Codertocat/Hello-World"},"pusher":{"name":"Codertocat"},"commits":[]}`
		},
		header: func(event string, _ int) []string {
			return []string{
				"Content-Type", "application/json", "User-Agent", "GitHub-Hookshot/044aadd", "X-GitHub-Delivery", uuid("github " + event), "X-GitHub-Event", "push",
				"X-GitHub-Hook-ID", "292430182", "X-GitHub-Hook-Installation-Target-ID", "79929171", "X-GitHub-Hook-Installation-Target-Type", "repository",
			}
		},
		sign: func(_ http.Header, body string) (string, string) {
			return "X-Hub-Signature-256", "sha256=" + hexMAC(body)
		},
	},
	{
		row:  "GitLab 17.4 and later",
		path: "/webhooks/gitlab",
		body: func(string, int) string {
			return `{"object_kind":"push","event_name":"push","ref":"refs/heads/main","checkout_sha":"da1560886d4f094c3e6c9ef40349f7d38b5d27d7","project_id":15,"total_commits_count":0,"commits":[]}`
		},
		header: func(event string, _ int) []string {
			return []string{
				"Content-Type", "application/json", "User-Agent", "GitLab/18.5.0", "Idempotency-Key", uuid("gitlab " + event), "X-Gitlab-Event", "Push Hook",
				"X-Gitlab-Webhook-UUID", "5a1d2d3c-2f0d-4f8e-a4f8-8b6f1c1d0c11", "X-Gitlab-Event-UUID", "13792a34-cac6-4fda-95a8-c58e00a3954e",
				"X-Gitlab-Instance", "https://gitlab.example", "X-Gitlab-Token", secret,
			}
		},
	},
	{
		row:  "Shopify",
		path: "/webhooks/shopify",
		body: func(string, int) string {
			return `{"id":820982911946154508,"admin_graphql_api_id":"gid:\/\/shopify\/Order\/820982911946154508","email":"jon@example.com","currency":"USD","total_price":"398.00","test":false}`
		},
		header: func(event string, _ int) []string {
			return []string{
				"Content-Type", "application/json", "User-Agent", "Shopify-Captain-Hook", "X-Shopify-Topic", "orders/create", "X-Shopify-Shop-Domain", "shop.myshopify.com",
				"X-Shopify-API-Version", "2026-01", "X-Shopify-Webhook-Id", uuid("shopify webhook " + event), "X-Shopify-Event-Id", uuid("shopify " + event),
				"X-Shopify-Triggered-At", "2026-03-04T05:06:07.123456789Z",
			}
		},
		sign: func(_ http.Header, body string) (string, string) { return "X-Shopify-Hmac-Sha256", base64MAC(body) },
	},
	standardWebhooks("webhook"),
	standardWebhooks("svix"),
	{
		row:  "CloudEvents over HTTP, binary and structured",
		path: "/webhooks/cloudevents",
		body: func(string, int) string { return `{"appinfoA":"abc","appinfoB":123,"appinfoC":true}` },
		header: func(event string, _ int) []string {
			return []string{
				"Content-Type", "application/json; charset=utf-8", "ce-specversion", "1.0", "ce-type", "com.example.someevent", "ce-source", "https://example.com/cloudevents/spec/pull?a=1&b=%20",
				"ce-id", "A234-1234-1234-" + event, "ce-time", "2026-03-04T05:06:07Z", "ce-subject", "123",
			}
		},
	},
	{
		row:  "CloudEvents over HTTP, binary and structured",
		path: "/webhooks/cloudevents",
		body: func(event string, _ int) string {
			return `{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","subject":null,"id":"B234-1234-1234-` + event +
				`","time":"2026-03-04T05:06:07Z","datacontenttype":"application/json","data":{"id":"another","appinfoB":123}}`
		},
		header: func(string, int) []string {
			return []string{"Content-Type", "application/cloudevents+json; charset=utf-8"}
		},
	},
	{
		row:  "PayPal",
		path: "/webhooks/paypal",
		body: func(event string, _ int) string {
			return `{"id":"WH-9UG43882HX7271132-6E0871324L794` + event + `","event_version":"1.0","create_time":"2026-03-04T05:06:07.000Z","resource_type":"sale",` +
				`"event_type":"PAYMENT.SALE.COMPLETED","summary":"Payment completed for $ 21.0 USD","resource":{"id":"80F85758S3080410K","state":"completed","amount":{"total":"21.00","currency":"USD"}},` +
				`"links":[{"href":"https://api.paypal.com/v1/notifications/webhooks-events/WH-9UG43882HX7271132-6E0871324L794` + event + `","rel":"self","method":"GET"}]}`
		},
		header: func(event string, try int) []string {
			return []string{
				"Content-Type", "application/json", "User-Agent", "PayPal/AUHD-214.0-58843279", "PayPal-Transmission-Id", uuid(fmt.Sprint("paypal ", event, try)),
				"PayPal-Transmission-Time", "2026-03-04T05:0" + strconv.Itoa(try) + ":07Z", "PayPal-Auth-Algo", "SHA256withRSA",
				"PayPal-Cert-Url", "https://api.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594-a5cafa77",
			}
		},
		sign: func(h http.Header, body string) (string, string) { // with RSA at PayPal
			return "PayPal-Transmission-Sig", base64MAC(h.Get("PayPal-Transmission-Id") + "|" + h.Get("PayPal-Transmission-Time") + "|" + body)
		},
	},
	{
		row:  "Twilio",
		path: "/webhooks/twilio",
		body: func(string, int) string {
			return url.Values{
				"ApiVersion": {"2010-04-01"}, "AccountSid": {"AC" + strings.Repeat("0", 32)}, "MessageSid": {"SM" + strings.Repeat("1", 32)}, "MessageStatus": {"delivered"},
				"From": {"+15005550006"}, "To": {"+15558675310"},
			}.Encode()
		},
		header: func(event string, _ int) []string {
			return []string{
				"Content-Type", "application/x-www-form-urlencoded; charset=UTF-8", "User-Agent", "TwilioProxy/1.1", "Accept", "*/*",
				"I-Twilio-Idempotency-Token", uuid("twilio " + event),
			}
		},
		sign: func(_ http.Header, body string) (string, string) {
			fields, _ := url.ParseQuery(body)
			text := "https://hooks.example/webhooks/twilio"
			for _, name := range slices.Sorted(maps.Keys(fields)) {
				text += name + fields.Get(name)
			}
			return "X-Twilio-Signature", base64.StdEncoding.EncodeToString(mac(sha1.New, text))
		},
	},
	{
		row:  "Amazon SNS",
		path: "/webhooks/sns",
		body: func(event string, _ int) string {
			return `{
  "Type" : "Notification",
  "MessageId" : "` + uuid("sns "+event) + `",
  "TopicArn" : "arn:aws:sns:us-west-2:123456789012:MyTopic",
  "Subject" : "My First Message",
  "Message" : "Hello world!",
  "Timestamp" : "2026-03-04T05:06:07.824Z",
  "SignatureVersion" : "1",
  "Signature" : "EXAMPLEw6JRN",
  "SigningCertURL" : "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem",
  "UnsubscribeURL" : "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe"
}`
		},
		header: func(event string, _ int) []string {
			return []string{
				"Content-Type", "text/plain; charset=UTF-8", "User-Agent", "Amazon Simple Notification Service Agent", "x-amz-sns-message-type", "Notification",
				"x-amz-sns-message-id", uuid("sns " + event), "x-amz-sns-topic-arn", "arn:aws:sns:us-west-2:123456789012:MyTopic",
				"x-amz-sns-subscription-arn", "arn:aws:sns:us-west-2:123456789012:MyTopic:c9135db0-26c4-47ec-8998-413945fb5a96",
			}
		},
	},
	{
		row:  "Square",
		path: "/webhooks/square",
		body: func(event string, _ int) string {
			return `{"merchant_id":"6SSW7HV8K2ST5","type":"payment.updated","event_id":"` + uuid("square "+event) + `","created_at":"2026-03-04T05:06:07.64Z",` +
				`"data":{"type":"payment","id":"hYy9pRFVxpDsO1FB05SunFWUe9JZY","object":{"payment":{"id":"hYy9pRFVxpDsO1FB05SunFWUe9JZY","status":"COMPLETED"}}}}`
		},
		header: func(_ string, try int) []string {
			lines := []string{"Content-Type", "application/json", "User-Agent", "Square Connect v2", "square-environment", "Production"}
			if try > 1 {
				lines = append(lines, "square-initial-delivery-timestamp", "2026-03-04T05:06:08Z", "square-retry-number", strconv.Itoa(try-1), "square-retry-reason", "http_timeout")
			}
			return lines
		},
		sign: func(_ http.Header, body string) (string, string) {
			return "x-square-hmacsha256-signature", base64MAC("https://hooks.example/webhooks/square" + body)
		},
	},
	{
		row:  "Zoom",
		path: "/webhooks/zoom",
		body: func(event string, _ int) string { // its names here have different lengths
			return fmt.Sprintf(`{"event":"meeting.started","payload":{"account_id":"AAAAAABBBB","object":{"duration":0,"start_time":"2026-03-04T05:06:07Z","timezone":"","topic":"My Meeting",`+
				`"id":"1234567890","type":2,"uuid":"4444AAAiAAAAAiAiAiiAii==","host_id":"x1yCzABCDEfg23HiJKl4mN"}},"event_ts":17726007%05d}`, len(event))
		},
		header: func(_ string, try int) []string {
			return []string{"Content-Type", "application/json; charset=utf-8", "User-Agent", "Zoom Marketplace/1.0a", "x-zm-request-timestamp", sent(try)}
		},
		sign: func(h http.Header, body string) (string, string) {
			return "x-zm-signature", "v0=" + hexMAC("v0:"+h.Get("x-zm-request-timestamp")+":"+body)
		},
	},
}

// standardWebhooks is who sends as https://www.standardwebhooks.com says, under this prefix of header names.
func standardWebhooks(prefix string) *sender {
	return &sender{
		row:  "Svix, Standard Webhooks",
		path: "/webhooks/svix",
		body: func(string, int) string {
			return `{"type":"invoice.paid","timestamp":"2026-03-04T05:06:07.344522Z","data":{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}}`
		},
		header: func(event string, try int) []string {
			return []string{
				"Content-Type", "application/json", "User-Agent", "Svix-Webhooks/1.62.0 (sender-9YMgn; +https://www.svix.com/http-sender/)",
				prefix + "-id", "msg_p5jXN8AQM9LWM0D4" + event, prefix + "-timestamp", sent(try),
			}
		},
		sign: func(h http.Header, body string) (string, string) {
			return prefix + "-signature", "v1," + base64MAC(h.Get(prefix+"-id")+"."+h.Get(prefix+"-timestamp")+"."+body)
		},
	}
}

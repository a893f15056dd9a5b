#!/bin/sh -e
# Makes the certificates and the CRL again, with openssl 3.0 (README.md says which not).
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
begin=20261124100000Z end=20361121100000Z

# ca NAME SUBJECT KEY-OPTIONS: a root
ca() {
    openssl req -new $3 -keyout "$work/$1.key" -subj "$2" -out "$work/$1.csr" 2>/dev/null
    sign "$1" "$1" -selfsign "basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid" sha256
}

# sign NAME CA SELFSIGN EXTENSIONS DIGEST: with the CA's database, for exact dates
sign() {
    mkdir -p "$work/$2.db"
    : > "$work/$2.db/index"
    [ -f "$work/$2.db/serial" ] || openssl rand -hex 15 | sed 's/^/4a/' > "$work/$2.db/serial"
    cat > "$work/$1.conf" <<CONF
[ca]
default_ca = it
[it]
database = $work/$2.db/index
serial = $work/$2.db/serial
new_certs_dir = $work
private_key = $work/$2.key
certificate = $work/$2.pem
default_md = $5
policy = any
unique_subject = no
string_mask = utf8only
utf8 = yes
$([ -z "$4" ] || echo "x509_extensions = ext")
[any]
commonName = optional
organizationName = optional
[ext]
$4
CONF
    [ "$2" != "$1" ] || selfsign="-selfsign"
    openssl ca -batch -config "$work/$1.conf" ${3:+$3} -in "$work/$1.csr" -startdate $begin -enddate $end \
        -preserveDN -notext -out "$work/$1.pem" 2>/dev/null
    openssl x509 -in "$work/$1.pem" -outform DER -out "$1.der"
}

# node NAME CA SUBJECT KEY-OPTIONS DIGEST EXTENSIONS
node() {
    openssl req -new $4 -utf8 -keyout "$work/$1.key" -subj "$3" -out "$work/$1.csr" 2>/dev/null
    sign "$1" "$2" "" "$6" "$5"
}

base="basicConstraints=CA:FALSE
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid"
san="subjectAltName=DNS:db1.example.com,IP:10.0.0.1,URI:spiffe://site/db1"
both="extendedKeyUsage=serverAuth,clientAuth"
sig="keyUsage=critical,digitalSignature"
good="$base
$san
$both
$sig"

ca ca "/CN=Test CA" "$ec"
ca namesake-ca "/CN=Test CA" "$ec"
ca ed25519-ca "/CN=Ed25519 CA" "-newkey ed25519 -nodes"
node node ca "/CN=db1" "$ec" sha256 "$good"
node only-client ca "/CN=db1" "$ec" sha256 "$base
$san
extendedKeyUsage=clientAuth"
node only-server ca "/CN=db1" "$ec" sha256 "$base
$san
extendedKeyUsage=serverAuth"
node no-signing ca "/CN=db1" "$ec" sha256 "$base
$san
$both
keyUsage=critical,keyAgreement"
node no-san ca "/CN=db1" "$ec" sha256 "$base
$both"
node rsa1024 ca "/CN=db1" "-newkey rsa:1024 -nodes" sha256 "$good"
node secp256k1 ca "/CN=db1" "-newkey ec -pkeyopt ec_paramgen_curve:secp256k1 -nodes" sha256 "$good"
node sha1 ca "/CN=db1" "$ec" sha1 "$good"
node v1 ca "/CN=db1" "$ec" sha256 ""
node ed25519 ed25519-ca "/CN=db1" "$ec" default "$good"
node hostile ca "/CN=\$(reboot)" "$ec" sha256 "$base
subjectAltName=DNS:a;reboot"
node middle-ca ca "/CN=Middle CA" "$ec" sha256 "basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid"
node below-middle middle-ca "/CN=db1" "$ec" sha256 "$good"

openssl req -new $ec -keyout "$work/self-signed.key" -subj "/CN=db1" -out "$work/self-signed.csr" 2>/dev/null
sign self-signed self-signed -selfsign "basicConstraints=critical,CA:TRUE
$san" sha256
openssl req -new $ec -keyout "$work/v1-ca.key" -subj "/CN=Old CA" -out "$work/v1-ca.csr" 2>/dev/null
sign v1-ca v1-ca -selfsign "" sha256

# A CRL of `ca` with one entry.
: > "$work/ca.db/index"
echo 01 > "$work/ca.db/crlnumber"
sed -i "s|^\[any\]|crlnumber = $work/ca.db/crlnumber\ncrl_extensions = crl\n[crl]\nauthorityKeyIdentifier=keyid\n[any]|" "$work/ca.conf"
openssl ca -config "$work/ca.conf" -revoke "$work/only-client.pem" 2>/dev/null
openssl ca -config "$work/ca.conf" -gencrl -crldays 30 -out "$work/crl.pem" 2>/dev/null
openssl crl -in "$work/crl.pem" -outform DER -out ca.crl.der
